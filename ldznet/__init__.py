"""The science of LD-ZNet: one process, one device, no cluster."""
