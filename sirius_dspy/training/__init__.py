"""From runs to rows, and from rows to new weights."""
