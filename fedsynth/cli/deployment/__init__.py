"""Links and silos: folders, certificates, processes."""
