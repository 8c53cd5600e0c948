"""What a federation needs beside Flower: keys, a closed door, averages, processes."""
