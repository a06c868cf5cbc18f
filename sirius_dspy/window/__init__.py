"""A window on a running compile: what its folder and its library show of it, in a terminal and on a local page."""
