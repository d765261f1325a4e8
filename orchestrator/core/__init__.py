"""The brain: a pure state machine. Events and the time go in, one Step comes out. No IO, no clock, no chance."""
