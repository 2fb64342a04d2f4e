"""The methods of the papers, one file each; no method imports another."""
