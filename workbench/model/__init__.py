"""Which network: preset shapes with their arithmetic, and the Hugging Face models made of them."""
