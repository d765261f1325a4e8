"""What is measured of this host beside the work: memory, disk, network (psutil) and GPUs (NVML)."""
