"""What a site physically does: disks, host memory, slots, links. The plant of a rehearsal's twins and of the simulator."""
