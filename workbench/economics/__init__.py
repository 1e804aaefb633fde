"""From energy to money: pure functions over declared and measured quantities."""
