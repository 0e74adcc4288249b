"""What runs an agent: one small file per provider behind the port in base.py."""
