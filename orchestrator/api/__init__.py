"""The services: authenticate, limit, decode, ask the driver, encode. Decides nothing about jobs or sites."""
