from workbench.machine.memory import cgroup_limits, memory


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_every_ancestor_s_limit_counts_and_droppable_cache_does_not(tmp_path):
    own = tmp_path / "own"
    own.write_text("0::/a/b\n")
    write(tmp_path / "fs/a/memory.max", "4000\n")
    write(tmp_path / "fs/a/memory.current", "1500\n")
    write(tmp_path / "fs/a/memory.stat", "anon 500\ninactive_file 700\n")
    write(tmp_path / "fs/a/b/memory.max", "max\n")
    write(tmp_path / "fs/a/b/memory.current", "100\n")
    assert cgroup_limits(own, tmp_path / "fs") == [(4000, 800)]


def test_a_container_whose_path_is_the_host_s_reads_its_own_mount(tmp_path):
    own = tmp_path / "own"
    own.write_text("5:cpu,cpuacct:/docker/xyz\n4:memory:/docker/xyz\n")
    write(tmp_path / "fs/memory/memory.limit_in_bytes", "9000\n")
    write(tmp_path / "fs/memory/memory.usage_in_bytes", "1000\n")
    assert cgroup_limits(own, tmp_path / "fs") == [(9000, 1000)]


def test_without_control_groups_there_is_no_limit(tmp_path):
    assert cgroup_limits(tmp_path / "absent", tmp_path) == []


def test_available_memory_lies_within_the_total():
    now = memory()
    assert 0 < now.available_bytes <= now.total_bytes
