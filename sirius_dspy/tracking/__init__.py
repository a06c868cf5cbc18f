"""Events of a compile, and those who receive them."""
