"""What every other part stands on: errors, names, records. Imports nothing of the plugin."""
