"""What the tests talk to: real programs and servers on the loopback interface."""
