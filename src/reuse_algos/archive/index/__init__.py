"""The summaries of ended runs, kept together: so that choosing among very many runs costs what changed."""
