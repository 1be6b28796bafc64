"""What a fingerprint of schemas is made of: their objects, a quick look at them, a long one, words
for a person.
"""
