"""From a model and images to arrays and figures; nothing here draws or writes HTML."""
