"""What every engine promises the gateway (app/engines/base.py), as one suite over all of them."""
