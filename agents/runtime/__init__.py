"""What executes at a site: `ray` (real pipelines) and `twin` (rehearsal). One Protocol, in `base`."""
