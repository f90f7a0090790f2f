# MadKV's recipes. They work from any directory and make what they need; relative paths in arguments start here.
# They run with the `just` of the environment (`./justw …`) or with any other from 1.35 on.

# project 1: one server, in memory
mod p1 'justmod/proj1.just'
# project 2: partitions, durable servers, a manager
mod p2 'justmod/proj2.just'
# project 3: replicated partitions, replicated managers
mod p3 'justmod/proj3.just'
# tools around the projects
mod utils 'justmod/utils.just'
# measurements that stay in the project
mod bench 'justmod/bench.just'
# crashes and measurements of the durable store
mod storage 'justmod/storage.just'
# simulations of replicated groups
mod sim 'justmod/sim.just'
# a cluster on this machine, in the background
mod cluster 'justmod/cluster.just'
# certificates
mod tls 'justmod/tls.just'
# real processes under faults
mod chaos 'justmod/chaos.just'
# garbage at every door
mod fuzz 'justmod/fuzz.just'

python := quote(justfile_directory() / "justmod/python")
just := quote(just_executable())

# list the recipes
default:
    @exec {{ just }} --justfile {{ quote(justfile()) }} --list

# list the files as a tree
[no-exit-message]
tree:
    @exec {{ python }} -m madkv.testing.tree

# start a cluster, have clients call it, kill a leader under them, check every answer, clean up
[no-exit-message]
[positional-arguments]
demo *options:
    @exec {{ python }} -m madkv.testing.demo --just {{ just }} "$@"

# lint, types, tests with coverage; `./justw test fast=yes` runs the tests alone
[no-exit-message]
[positional-arguments]
test *options:
    @exec {{ python }} -m madkv.testing.check "$@"
