"""Pictures that need the network: adversarial examples, neurons and what moves them, loss landscapes."""

from nsr.pictures.attacked import strongest_first
from nsr.pictures.make import make_pictures
from nsr.pictures.subject import Picture, Subject
from nsr.pictures.write import write_pictures

__all__ = ["Picture", "Subject", "make_pictures", "strongest_first", "write_pictures"]
