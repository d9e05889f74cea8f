"""Write the model in the formats that engines run."""
