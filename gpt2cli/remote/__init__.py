"""Models on other machines: a client of any server that speaks OpenAI's API."""
