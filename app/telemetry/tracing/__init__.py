"""Traces by OpenTelemetry: from the record of a request, when it has ended, to a collector (docs/adr/0013)."""
