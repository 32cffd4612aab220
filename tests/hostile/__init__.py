"""Every message a proxy can send, and every way it can fail to send one."""
