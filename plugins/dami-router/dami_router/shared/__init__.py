"""Small tools that know nothing of routing: strict YAML, durable files, a memo, suggestions."""
