"""Devices that play meters over the loopback, for the tests and ``make energy``: a PDU's SNMP
agent, a BMC over Redfish and over IPMI, a Modbus meter, a Prometheus, an NVML library.

What each shows is asked of a function at each question, so that one follows any power over time, on
a clock that a test steps. They serve until they are closed, and each has a ``port``.
"""
