"""What a simulation leaves behind: rows of jobs and of sites, the files they are kept in, and the figures drawn from them."""
