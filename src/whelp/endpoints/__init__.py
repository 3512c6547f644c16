"""Language models behind an address: how they are asked, and what they said."""
