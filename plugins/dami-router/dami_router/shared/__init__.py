"""Small tools that do not depend on routing: strict YAML and its models, durable files, a cache, suggestions."""
