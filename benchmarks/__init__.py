"""What a test costs with the plugin, measured beside the same done by hand."""
