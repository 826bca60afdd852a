// Connector/J: TABLE FILE URL; statements, one a line, on
// standard input. Prints a JSON list of steps: verb, returned rows, affected rows, error.

import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.nio.charset.StandardCharsets;
import java.sql.Connection;
import java.sql.DriverManager;
import java.sql.PreparedStatement;
import java.sql.ResultSet;
import java.sql.SQLException;
import java.sql.Statement;
import java.util.ArrayList;
import java.util.List;
import java.util.Set;

public class Sql {
    private static final List<String> STEPS = new ArrayList<>();
    private static final Set<String> CHANGES = Set.of("INSERT", "UPDATE", "DELETE", "LOAD");

    private interface Execution {
        boolean run() throws SQLException;
    }

    private static int rows(ResultSet set) throws SQLException {
        int count = 0;
        while (set.next()) {
            count++;
        }
        return count;
    }

    private static void run(Statement statement, String text, Execution execution)
            throws SQLException {
        String verb = text.split("\\s", 2)[0].toUpperCase();
        String returned = "null", affected = "null", error = "null";
        try {
            boolean isSet = execution.run();
            int total = 0;
            boolean any = isSet;
            if (!isSet && CHANGES.contains(verb)) {
                affected = String.valueOf(statement.getUpdateCount());
            }
            while (isSet || statement.getUpdateCount() != -1) {
                if (isSet) {
                    total += rows(statement.getResultSet());
                }
                isSet = statement.getMoreResults();
            }
            if (any) {
                returned = String.valueOf(total);
            }
        } catch (SQLException failure) {
            if (failure.getErrorCode() == 0) {
                throw failure;
            }
            error = "\"" + failure.getErrorCode() + "\"";
        }
        STEPS.add("[\"" + verb + "\", " + returned + ", " + affected + ", " + error + "]");
    }

    private static void run(Connection connection, String text) throws SQLException {
        try (Statement statement = connection.createStatement()) {
            run(statement, text, () -> statement.execute(text));
        }
    }

    public static void main(String[] args) throws Exception {
        String table = args[0], file = args[1], url = args[2];
        BufferedReader in =
                new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
        try (Connection connection = DriverManager.getConnection(url)) {
            connection.isValid(5);
            for (String line = in.readLine(); line != null; line = in.readLine()) {
                run(connection, line);
            }
            String text = "SELECT id, name FROM " + table + " WHERE id = ?";
            try (PreparedStatement prepared = connection.prepareStatement(text)) {
                for (int id : new int[] {1, 2, 99}) {
                    prepared.setInt(1, id);
                    run(prepared, text, prepared::execute);
                }
            }
            String insert = "INSERT INTO " + table + " (id, name) VALUES (?, ?)";
            try (PreparedStatement prepared = connection.prepareStatement(insert)) {
                prepared.setInt(1, 70);
                prepared.setString(2, "Päul");
                run(prepared, insert, prepared::execute);
            }
            run(connection, "SELECT n FROM ten WHERE n < 4; SELECT n AS inner_n FROM ten WHERE n < 2");
            run(connection, "CALL two()");
            run(connection, "LOAD DATA LOCAL INFILE '" + file + "' INTO TABLE " + table + " (id, name)");
            connection.setCatalog("other");
            // A cursor of the server's: 30 rows in three fetches, and one that says it's over.
            String cross = "SELECT a.n FROM shop.ten a, shop.ten b WHERE b.n < ?";
            try (PreparedStatement prepared = connection.prepareStatement(cross)) {
                prepared.setInt(1, 3);
                prepared.setFetchSize(10);
                run(prepared, cross, prepared::execute);
            }
        }
        System.out.println(STEPS);
    }
}
