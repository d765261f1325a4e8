"""Results as people see them: a page that needs nothing but itself, and a screen of a terminal."""
