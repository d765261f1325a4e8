"""What settled attempts teach the estimates. Pure: observations go in, factors in thousandths come out."""
