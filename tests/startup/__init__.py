"""gsssocks in programs that do not know of it: fresh processes, started as a user starts them."""
