"""How much memory and time a recipe takes, worked out from `config.json` alone, before anything is loaded."""
