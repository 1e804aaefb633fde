"""From a request trace, or a declared stand-in, to a load profile that can be replayed."""
