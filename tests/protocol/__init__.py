"""The octets of RFC 1928, RFC 1929 and RFC 1961."""
