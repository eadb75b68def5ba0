"""What `python -m bench verify` goes through: operations on shapes, in places."""
