"""Loading models by folder, hub id, preset or name, and the bundled one."""
