"""Does a reward model pay for hacks, and does a policy use them?"""
