"""Sources: what the pictures come from. One module a kind; the interface is ``source``, the choice ``configured``."""
