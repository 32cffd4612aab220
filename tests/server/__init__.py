"""The embedded proxy: commands, rules and levels, and the service made of it."""
