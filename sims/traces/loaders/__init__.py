"""Records of other services -> jobs. One module for each kind of record; what a record does not say is made up, and named as such."""
