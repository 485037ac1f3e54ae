"""The commands: parse, compose, validate, preflight, build, train, evaluate. Only this folder imports Hydra."""
