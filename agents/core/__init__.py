"""The site's brain: a pure state machine that reconciles assignment and reality. No IO, no clock, no chance."""
