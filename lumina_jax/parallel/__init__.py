"""Devices and processes: meshes, shardings, clusters, compiled programs.

mesh             the mesh, and the rules that shard arrays over it
placement        reads parameters onto the devices of a mesh
sharding_table   prints how a training state is sharded
processes        several processes as one program
cluster          finds the processes of a run
chips            data sheets of accelerators
topology         machines to compile for, present or not
compiled         memory and collectives of a compiled program
hlo              parses the text of compiled programs
"""
