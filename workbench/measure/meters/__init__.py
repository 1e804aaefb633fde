"""Energy that was measured, or no number and the reason.

``find_meters`` says what there is on this machine and why the rest is missing;
:class:`EnergySession` samples it in the background and gives the energy of any window.
"""

from workbench.measure.meters.energy import Energy
from workbench.measure.meters.find import MissingMeter, find_meters
from workbench.measure.meters.session import EnergySession

__all__ = ["Energy", "EnergySession", "MissingMeter", "find_meters"]
