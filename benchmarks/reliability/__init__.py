"""What stores survive: kills, power cuts, flipped bits, hostile files, full disks."""
