"""Measured error rates of a battery: many audits of models whose truth is known, put together from measurements made once."""
