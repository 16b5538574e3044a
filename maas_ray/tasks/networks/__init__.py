"""The networks as torch modules, imported where one is built: the tasks themselves know no torch."""
