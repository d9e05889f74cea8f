"""Ship a finished bundle: sign it, list its materials, pack it as a wheel."""
